"""What an event is: reads catalog/ and compiles it."""
