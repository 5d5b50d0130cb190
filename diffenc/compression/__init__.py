"""Lossless coding of images with a trained model, by bits-back coding on its chain of T steps."""
