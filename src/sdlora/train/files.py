"""Names of the files in a checkpoint's folder, for the stages that read them."""

FILE_NAME = "pytorch_lora_weights.safetensors"  # diffusers' own
AVERAGE = "ema"  # subfolder with the averaged weights
EMBEDDINGS = "embeddings.safetensors"  # learnt embeddings of the trigger
