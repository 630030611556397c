"""The main job from outside: a real process, ordinary clients, HTTP, signals."""
