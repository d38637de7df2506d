//! Standard output and standard error that nobody reads.

use std::process::Stdio;

/// A pipe whose reader is gone.
pub fn closed_pipe() -> Stdio {
    let (_, writer) = std::io::pipe().unwrap();
    writer.into()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn nobody_reads_it() {
        let status = Command::new("sh").args(["-c", "echo lost"]).stdout(closed_pipe()).status().unwrap();
        assert!(!status.success());
    }
}
