//! Where a node is: this machine, or one that the system's `ssh` reaches.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;

use tokio::process::Command;

use super::error::LaunchError;
use crate::sys;

/// The environment variable in which the helper of `ssh` finds the password.
const PASSWORD: &str = "NYDUS_CLUSTER_SSH_PASSWORD";

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// This machine.
    Here,
    /// A machine that ssh reaches: `HOST` or `HOST:PORT`.
    There {
        /// Its name or address.
        host: String,
        /// The port of its ssh; ssh's own choice if absent.
        port: Option<u16>,
    },
}

impl Place {
    /// Its name in messages: as it was named, for several may be behind the ports of one host.
    pub fn name(&self) -> String {
        match self {
            Self::Here => "this machine".to_owned(),
            Self::There { host, port: None } => host.clone(),
            Self::There { host, port: Some(port) } => format!("{host}:{port}"),
        }
    }

    /// Its address, if it was named by that.
    pub(super) fn address(&self) -> Option<&str> {
        match self {
            Self::There { host, .. } if host.parse::<std::net::IpAddr>().is_ok() => Some(host),
            _ => None,
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected HOST or HOST:PORT");
        let (host, port) = match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port.parse().map_err(|_| wrong())?)),
            // An IPv6 address has more than one.
            _ => (text, None),
        };
        // ssh would take it for an option.
        if host.is_empty() || host.starts_with('-') || host.contains(|c: char| c.is_whitespace() || c == '@')
        {
            return Err(wrong());
        }
        Ok(Self::There { host: host.to_owned(), port })
    }
}

/// How nodes are logged in to.
#[derive(Clone, Default)]
pub struct SshOptions {
    /// The user; `sudo` makes it root where it is another.
    pub user: Option<String>,
    /// A private key; ssh's own choice if absent.
    pub key: Option<PathBuf>,
    /// A password, in place of keys.
    pub password: Option<String>,
}

impl fmt::Debug for SshOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = self.password.as_ref().map(|_| "…");
        let mut shown = f.debug_struct("SshOptions");
        shown.field("user", &self.user).field("key", &self.key).field("password", &password).finish()
    }
}

/// `ssh` with what it needs: files in a directory of the cluster's.
#[derive(Clone, Debug)]
pub(super) struct Ssh {
    options: SshOptions,
    dir: PathBuf,
}

impl Ssh {
    /// Keeps the nodes' keys in `dir`, and what gives ssh the password.
    pub(super) fn new(options: &SshOptions, dir: &Path) -> Result<Self, LaunchError> {
        let ssh = Self { options: options.clone(), dir: dir.to_owned() };
        if options.password.is_some() {
            let helper = ssh.helper();
            let text = format!("#!/bin/sh\nprintf '%s\\n' \"${PASSWORD}\"\n");
            fs::write(&helper, text).map_err(LaunchError::io(&helper))?;
            fs::set_permissions(&helper, fs::Permissions::from_mode(0o700))
                .map_err(LaunchError::io(&helper))?;
        }
        Ok(ssh)
    }

    fn helper(&self) -> PathBuf {
        self.dir.join("password")
    }

    /// A shell's command on a node, as root. When it is dropped, it ends or its input does.
    pub(super) fn command(&self, place: &Place, script: &str) -> Command {
        let mut command = match place {
            Place::Here => {
                let mut command = Command::new("/bin/sh");
                // What runs here is not told how to log in elsewhere.
                command.args(["-c", script]).env_remove(PASSWORD).process_group(0);
                command
            }
            Place::There { host, port } => self.ssh(host, *port, script),
        };
        // An interrupt at the terminal reaches us alone; a node ends what it does when its standard input ends. Here a signal that kills would
        // keep it from that.
        command.kill_on_drop(*place != Place::Here);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn ssh(&self, host: &str, port: Option<u16>, script: &str) -> Command {
        let mut command = Command::new("ssh");
        command.args([
            "-T",
            "-o",
            "ConnectTimeout=15",
            "-o",
            "ServerAliveInterval=15",
            "-o",
            "LogLevel=ERROR",
        ]);
        // A node that is new is believed, one whose key changes is not.
        command.args(["-o", "StrictHostKeyChecking=accept-new", "-o"]);
        let mut known = OsString::from("UserKnownHostsFile=\"");
        known.push(self.dir.join("known_hosts"));
        known.push("\" ~/.ssh/known_hosts");
        command.arg(known);
        if let Some(port) = port {
            command.arg("-p").arg(port.to_string());
        }
        if let Some(user) = &self.options.user {
            command.arg("-l").arg(user);
        }
        if let Some(key) = &self.options.key {
            command.args(["-o", "IdentitiesOnly=yes"]).arg("-i").arg(key);
        }
        match &self.options.password {
            Some(password) => {
                command.args(["-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=1"]);
                command.env("SSH_ASKPASS", self.helper()).env("SSH_ASKPASS_REQUIRE", "force");
                // Before OpenSSH 8.4 it asks the helper where it has no terminal, but a display.
                if std::env::var_os("DISPLAY").is_none() {
                    command.env("DISPLAY", ":0");
                }
                command.env(PASSWORD, password);
            }
            None => _ = command.args(["-o", "BatchMode=yes"]).env_remove(PASSWORD),
        }
        let root = self.options.user.as_deref().is_none_or(|user| user == "root");
        let prefix = if root { "" } else { "sudo -n " };
        command.arg("--").arg(host).arg(format!("{prefix}/bin/sh -c {}", quoted(script)));
        sys::leave_terminal(command.as_std_mut());
        command
    }
}

/// A word of a shell's.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_by_host_and_port() {
        let there = |host: &str, port| Ok(Place::There { host: host.to_owned(), port });
        assert_eq!("a.example".parse(), there("a.example", None));
        assert_eq!("10.0.0.1:2222".parse(), there("10.0.0.1", Some(2222)));
        assert_eq!("fd00::1".parse(), there("fd00::1", None));
        for wrong in ["", "-oProxyCommand=x", "a b", "root@a", "a:ssh", ":22"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
        for name in ["a.example", "10.0.0.1:2222", "fd00::1"] {
            assert_eq!(name.parse::<Place>().unwrap().name(), name);
        }
    }

    #[test]
    fn a_password_is_in_no_argument_and_shown_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let options = SshOptions { password: Some("p'a s\"s".to_owned()), ..SshOptions::default() };
        assert!(!format!("{options:?}").contains("p'a"), "{options:?}");
        let ssh = Ssh::new(&options, dir.path()).unwrap();
        let command = ssh.command(&"10.0.0.1".parse().unwrap(), "true");
        let command = command.as_std();
        assert!(command.get_args().all(|word| !word.to_string_lossy().contains("p'a")));
        // What ssh asks for the password says it, whatever is in it.
        let helper = command.get_envs().find_map(|(name, value)| value.filter(|_| name == "SSH_ASKPASS"));
        let mut helper = std::process::Command::new(helper.unwrap());
        let said = helper.arg("root@10.0.0.1's password: ").env(PASSWORD, "p'a s\"s").output().unwrap();
        assert_eq!(said.stdout, b"p'a s\"s\n");
    }

    #[test]
    fn a_word_is_one_word_to_a_shell() {
        assert_eq!(quoted("it's $HOME"), "'it'\\''s $HOME'");
    }
}
