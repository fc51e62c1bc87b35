"""Networks trained apart, aligned and averaged."""
