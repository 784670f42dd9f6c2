"""Which pictures, captions and repeats kohya's trainer finds in a folder, written to OUT/found.json.

Call: kohya_dataset.py CHECKOUT SET OUT LAYOUT, with SET the folder `kohya/` of a training set.
"""

import json
import sys
from pathlib import Path

import diffusers
import transformers
from common import base, checkout, files, out, stub

# before the stubs: both look for torchvision
assert diffusers.StableDiffusionPipeline and transformers.CLIPTextModel
stub("torchvision", "torchvision.transforms")
sys.path.insert(0, str(checkout))
from library import config_util, strategy_sd, train_util  # noqa: E402
from library.strategy_base import LatentsCachingStrategy  # noqa: E402

LatentsCachingStrategy.set_strategy(strategy_sd.SdSdxlLatentsCachingStrategy(True, False, 1, False))
if files[0] == "folders":
    subsets = config_util.generate_dreambooth_subsets_config_by_subdirs(str(base))
    for subset in subsets:
        subset["caption_extension"] = ".txt"
else:
    subsets = [
        {
            "image_dir": str(folder),
            "metadata_file": str(folder / "metadata.json"),
            "num_repeats": int(folder.name.split("_")[0]),
        }
        for folder in sorted(base.iterdir())
    ]
config = {"datasets": [{"subsets": subsets, "resolution": 64, "batch_size": 1, "enable_bucket": False}]}
sanitizer = config_util.ConfigSanitizer(True, True, False, True)
blueprint = config_util.BlueprintGenerator(sanitizer).generate(config, train_util.argparse.Namespace())
group = config_util.generate_dataset_group_by_blueprint(blueprint.dataset_group)
group = group[0] if isinstance(group, tuple) else group
found = {
    Path(name).name: {"caption": info.caption, "repeats": info.num_repeats}
    for dataset in group.datasets
    for name, info in ((info.absolute_path, info) for info in dataset.image_data.values())
}
out.mkdir(parents=True, exist_ok=True)
(out / "found.json").write_text(json.dumps(found, sort_keys=True), encoding="utf-8")
