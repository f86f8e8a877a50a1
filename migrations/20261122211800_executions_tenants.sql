-- What executes a job is walled as the job is, and journal entries as their lines are. Whether a connection sees everybody is asked once
-- for each statement; the other services' policies are chosen when a query is planned.
DO $$
DECLARE
    walled text;
    wall_of CONSTANT text := 'CASE WHEN (SELECT sees_all()) THEN true ELSE EXISTS (SELECT FROM %2$I part WHERE part.%3$I = %1$I.%3$I) END';
BEGIN
    FOREACH walled IN ARRAY ARRAY['replicas', 'queue'] LOOP
        CALL wall(walled::regclass, format(wall_of, walled, 'jobs', 'job_id'));
    END LOOP;
    -- The policies of an execution's parts ask for the execution, which its own policy answers.
    FOREACH walled IN ARRAY ARRAY['segments', 'segments_voided'] LOOP
        CALL wall(walled::regclass, format(wall_of, walled, 'replicas', 'replica_id'));
    END LOOP;
    CALL wall('attempt_blobs', format(wall_of, 'attempt_blobs', 'attempts', 'attempt_id'));
    FOREACH walled IN ARRAY ARRAY['worker_heartbeats', 'worker_records', 'worker_controls'] LOOP
        CALL wall(walled::regclass, format(wall_of, walled, 'workers', 'worker_id'));
    END LOOP;
END $$;
-- An attempt is the client's who ordered the job, and the provider's whose worker made it. Providers count thousands: theirs is asked first.
CALL wall('attempts', 'CASE WHEN (SELECT sees_all()) THEN true
    WHEN EXISTS (SELECT FROM workers WHERE workers.worker_id = attempts.worker_id) THEN true
    ELSE EXISTS (SELECT FROM jobs WHERE jobs.job_id = attempts.job_id) END');

-- An entry is seen by those who see a line of it. It is written before its lines, by a statement that asks for its id: while it has none
-- it is its writer's, and nobody else's statement ever sees it so.
CREATE FUNCTION has_lines(entry uuid) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE COST 1 SECURITY DEFINER SET search_path = public AS $$
    SELECT EXISTS (SELECT FROM postings WHERE journal_entry_id = entry)
$$;
ALTER TABLE journal_entries FORCE ROW LEVEL SECURITY;
DROP POLICY journal_entries_read ON journal_entries;
CREATE POLICY journal_entries_read ON journal_entries FOR SELECT TO comptoir_scheduler, comptoir_settler, comptoir_admin USING (true);
CREATE POLICY journal_entries_owner ON journal_entries TO CURRENT_USER USING (true);
CREATE POLICY journal_entries_tenant ON journal_entries FOR SELECT TO comptoir_api USING (
    CASE WHEN (SELECT sees_all()) THEN true
    WHEN EXISTS (SELECT FROM postings p WHERE p.journal_entry_id = journal_entries.journal_entry_id) THEN true
    ELSE NOT has_lines(journal_entry_id) END
);
