"""Events to one row of ordered events per customer; kept up to date by what changed."""
