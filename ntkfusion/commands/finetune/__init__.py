"""``ntkfusion finetune``."""
