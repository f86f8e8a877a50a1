-- Forfeits give back no more than refunds left of a charge: whoever posts them asks how much that is.
GRANT EXECUTE ON FUNCTION given_back TO comptoir_scheduler;
