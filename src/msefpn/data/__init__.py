"""Files into batches: COCO json, checks, augmentation, loaders and the built-in set."""
