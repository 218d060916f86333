"""The UCI handwritten digits, bundled with the package."""
