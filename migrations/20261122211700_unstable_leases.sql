-- A lease asks which programs a class of workers cannot be held to: all recent marks of one class.
CREATE INDEX unstable_classes_recent ON unstable_classes (numeric_class, marked_at);
-- Why a stuck job waits is told with them.
GRANT SELECT (program_sha256, numeric_class, marked_at) ON unstable_classes TO comptoir_admin;
