//! Units of roles that are written here, not shipped.

/// One that runs `command`, which says when it is ready, and whose lines `order` say what it comes before and after.
pub(super) fn serving(description: &str, order: &str, command: &str) -> String {
    format!(
        "# Written by nydus-cluster cluster run.
[Unit]
Description={description}
{order}
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
Restart=always
RestartSec=100ms
TimeoutStopSec=20
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
"
    )
}
