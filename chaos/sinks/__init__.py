"""Where the emitter writes: one small class a source kind."""
