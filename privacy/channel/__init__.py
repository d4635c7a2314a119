"""What passes between server and nodes: Flower records as parameters, and later the encrypted channel."""
