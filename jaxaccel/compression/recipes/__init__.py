"""The pipelines that come with jaxaccel: one file each, with a function `pipeline()`."""
