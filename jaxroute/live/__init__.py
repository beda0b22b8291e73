"""Real servers as a load client sees them: streams, replays of routing decisions, the simulator beside them."""
