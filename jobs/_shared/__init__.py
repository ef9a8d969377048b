"""The HTML pages: self-contained, nothing fetched from anywhere."""
