"""Reading files that nobody vouches for, without running what they hold and within stated sizes."""
