"""ReDi, our instantiation: the recover network, the Feature Recovery Block and their losses."""
