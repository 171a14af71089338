"""One job description for every scheduler: to come."""
