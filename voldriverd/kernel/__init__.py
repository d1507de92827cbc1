"""One module per kernel object; raises OSError and knows no volume."""
