"""What a finished run is judged by, besides the mean metrics of training."""
