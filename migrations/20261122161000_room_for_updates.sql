-- Rows that change a few times after they were written in bulk: room on their pages lets the changes that touch no index stay there.
ALTER TABLE jobs SET (fillfactor = 70);
ALTER TABLE replicas SET (fillfactor = 70);
ALTER TABLE attempts SET (fillfactor = 70);
