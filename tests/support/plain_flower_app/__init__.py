"""plain-flower-app: a Flower app as Flower's documentation teaches it. It knows of nothing but Flower and numpy."""
