"""The schema of the state file: one tuple of statements a version."""

#: In the header of every file of ours (sqlite.org/pragma.html#pragma_application_id); never changes.
APPLICATION_ID = int.from_bytes(b"VolD")

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE volumes (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            backend TEXT NOT NULL,
            size_bytes INTEGER NOT NULL,
            backend_bytes INTEGER NOT NULL DEFAULT 0,
            status TEXT NOT NULL,
            multi_attach INTEGER NOT NULL DEFAULT 0,
            options TEXT NOT NULL DEFAULT '{}',
            provider_data TEXT NOT NULL DEFAULT '',
            extend_new_size_bytes INTEGER
        ) STRICT""",
        """CREATE TABLE attachments (
            id TEXT PRIMARY KEY,
            volume_id TEXT NOT NULL REFERENCES volumes (id) ON DELETE RESTRICT,
            host TEXT NOT NULL,
            instance TEXT,
            monitor TEXT,
            state TEXT NOT NULL,
            protocol TEXT,
            properties TEXT,
            device_path TEXT,
            instance_process TEXT
        ) STRICT""",
        "CREATE INDEX attachments_of ON attachments (volume_id)",
        """CREATE TABLE extends (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            volume_id TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
            from_bytes INTEGER NOT NULL,
            requested_bytes INTEGER NOT NULL,
            to_bytes INTEGER NOT NULL,
            phase TEXT NOT NULL,
            expires_at TEXT NOT NULL,
            deferred INTEGER NOT NULL DEFAULT 0,
            reason TEXT NOT NULL DEFAULT ''
        ) STRICT""",
        "CREATE INDEX extends_of ON extends (volume_id, id)",
        # One extend a volume at a time, whatever the code does.
        """CREATE UNIQUE INDEX one_extend ON extends (volume_id)
            WHERE phase IN ('growing', 'rescanning', 'resizing', 'settling')""",
        """CREATE TABLE hints (
            extend_id INTEGER NOT NULL,
            volume_id TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
            kind TEXT NOT NULL,
            at TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX hints_of ON hints (extend_id)",
        """CREATE TABLE messages (
            volume_id TEXT NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
            at TEXT NOT NULL,
            text TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX messages_of ON messages (volume_id)",
    ),
    ("ALTER TABLE attachments ADD COLUMN connector TEXT",),
    (
        """CREATE TABLE snapshots (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            volume_id TEXT NOT NULL REFERENCES volumes (id) ON DELETE RESTRICT,
            size_bytes INTEGER NOT NULL,
            status TEXT NOT NULL,
            provider_data TEXT NOT NULL DEFAULT ''
        ) STRICT""",
        "CREATE INDEX snapshots_of ON snapshots (volume_id)",
        # Where the content of a volume comes from; looked at while it is being made.
        "ALTER TABLE volumes ADD COLUMN source_volume_id TEXT",
        "ALTER TABLE volumes ADD COLUMN source_snapshot_id TEXT",
        "ALTER TABLE volumes ADD COLUMN reference TEXT",
    ),
    (
        "ALTER TABLE attachments ADD COLUMN by_client INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE attachments ADD COLUMN read_only INTEGER NOT NULL DEFAULT 0",
        # What clients of the API say of a volume or snapshot. It outlives one that could not be made, so that
        # they can be told.
        """CREATE TABLE descriptions (
            id TEXT PRIMARY KEY,
            volume_id TEXT,
            project TEXT NOT NULL,
            user TEXT NOT NULL,
            name TEXT,
            description TEXT,
            metadata TEXT NOT NULL DEFAULT '{}',
            size_bytes INTEGER NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT,
            failure TEXT NOT NULL DEFAULT ''
        ) STRICT""",
    ),
    # Set by a client whose volume holds something that is whole: nobody may attach it for writing again.
    ("ALTER TABLE descriptions ADD COLUMN read_only INTEGER NOT NULL DEFAULT 0",),
    (
        # The image that a volume holds: one in the state "writing" whose writer is gone is not whole.
        """CREATE TABLE images (
            volume_id TEXT PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE,
            state TEXT NOT NULL,
            size_bytes INTEGER NOT NULL DEFAULT 0,
            sha256 TEXT NOT NULL DEFAULT '',
            md5 TEXT NOT NULL DEFAULT '',
            at TEXT NOT NULL
        ) STRICT""",
    ),
)
