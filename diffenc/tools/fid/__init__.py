"""FID and KID of samples."""
