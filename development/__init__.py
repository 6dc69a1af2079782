"""The development server and tools. The deployed application does not use them."""
