"""The demo: the main job on embedded images, and the planted bias that it corrects."""
