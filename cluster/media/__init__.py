"""Frames to files and back: mp4 and png."""
