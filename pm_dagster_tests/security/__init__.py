"""What an attacker, a careless setting or a talkative library could get at."""
