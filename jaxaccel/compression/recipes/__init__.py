"""The routes that come with jaxaccel: one file each, with a function `route()`."""
