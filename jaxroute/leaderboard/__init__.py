"""The leaderboard: policies over a grid of workloads, fleets, schedulers and loads, ranked, against a bound."""
