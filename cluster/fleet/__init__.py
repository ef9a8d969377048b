"""Driver, leaders and gangs: hand out, watch, kill, rebuild, drain."""
