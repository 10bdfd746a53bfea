"""Where records come from; the stage `prepare` alone reads it."""
