"""The keeper: the process that owns the machines of a running lab, and how others ask it for things."""
