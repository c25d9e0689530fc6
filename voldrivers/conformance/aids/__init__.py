"""What checks of several groups are made of: copies, blows, hypervisors that lie, work done meanwhile."""
