"""What is used to make parts of the repository; nothing of the pipeline imports it."""
