"""What else can be measured of a trained model: other bounds, its density, where its loss comes from."""
