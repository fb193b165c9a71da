"""The official Waymo metric as a second opinion, in its own Python, and the leaderboard's file."""
