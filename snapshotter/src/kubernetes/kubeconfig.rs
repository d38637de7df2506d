//! A kubeconfig: where the API server is, and who we are to it.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use registry::client::{ClientCertificate, Connection, Pem};
use yaml::Value;

/// No kubeconfig, and no file with a token, is larger.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// A kubeconfig cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("kubeconfig {}: {reason}", path.display())]
pub(crate) struct KubeconfigError {
    path: PathBuf,
    reason: String,
}

/// How the API server is reached, as the current context says.
#[derive(Clone, Debug)]
pub(super) struct Kubeconfig {
    /// Its URL, without a slash at the end.
    pub(super) server: String,
    pub(super) connection: Connection,
    pub(super) login: Login,
    /// The kubeconfig and the files that it names.
    pub(super) files: Vec<PathBuf>,
}

/// What is shown beside a certificate.
#[derive(Clone)]
pub(super) enum Login {
    /// Nothing.
    None,
    Token(String),
    Password {
        user: String,
        password: String,
    },
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Token(_) => "Token(…)",
            Self::Password { .. } => "Password(…)",
        })
    }
}

impl Kubeconfig {
    /// Reads a kubeconfig and all files that its current context names.
    pub(super) fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let failed = |reason: String| KubeconfigError { path: path.to_owned(), reason };
        let text = read_file(path).map_err(failed)?;
        let mut parsed = yaml::parse(&text);
        if let Some(error) = parsed.errors.pop() {
            return Err(failed(format!("line {}: {}", error.line, error.reason)));
        }
        let document = parsed.documents.first().ok_or_else(|| failed("it is empty".to_owned()))?;
        let mut reading = Reading {
            folder: path.parent().unwrap_or(Path::new("/")),
            name: path.display().to_string(),
            files: vec![path.to_owned()],
        };
        let (server, connection, login) = reading.context(document.root()).map_err(failed)?;
        Ok(Self { server, connection, login, files: reading.files })
    }
}

/// What is read for one kubeconfig.
struct Reading<'a> {
    /// Relative paths are below it.
    folder: &'a Path,
    name: String,
    files: Vec<PathBuf>,
}

impl Reading<'_> {
    fn context(&mut self, root: Value<'_>) -> Result<(String, Connection, Login), String> {
        let current = text(root, "current-context").ok_or("no current-context")?;
        let context = named(root, "contexts", "context", current)?;
        let cluster =
            text(context, "cluster").ok_or_else(|| format!("context {current} names no cluster"))?;
        let cluster = named(root, "clusters", "cluster", cluster)?;
        for key in ["tls-server-name", "proxy-url"] {
            if text(cluster, key).is_some() {
                return Err(format!("clusters: {key} is not supported"));
            }
        }
        let server = text(cluster, "server").ok_or("its cluster has no server")?;
        if !server.starts_with("https://") && !server.starts_with("http://") {
            return Err(format!("server {server}; expected https://HOST[:PORT]"));
        }
        let authority = self.pem(cluster, "certificate-authority")?;
        let mut connection = Connection {
            // As all clients of Kubernetes have it: a cluster's own authority is the only one.
            without_system: authority.is_some(),
            authorities: authority.into_iter().collect(),
            skip_verify: text(cluster, "insecure-skip-tls-verify") == Some("true"),
            ..Connection::default()
        };
        let login = match text(context, "user") {
            None => Login::None,
            Some(user) => self.user(named(root, "users", "user", user)?, &mut connection)?,
        };
        Ok((server.trim_end_matches('/').to_owned(), connection, login))
    }

    fn user(&mut self, user: Value<'_>, connection: &mut Connection) -> Result<Login, String> {
        for key in ["exec", "auth-provider"] {
            if user.get(key).is_some_and(|value| !value.is_null()) {
                return Err(format!(
                    "users: {key} is not supported; expected a client certificate, a token, or a user and a password"
                ));
            }
        }
        if let Some(chain) = self.pem(user, "client-certificate")? {
            connection.client = Some(ClientCertificate { chain, key: self.pem(user, "client-key")? });
        }
        if let Some(file) = text(user, "tokenFile") {
            let path = self.path(file);
            let token =
                read_file(&path).map_err(|reason| format!("tokenFile {}: {reason}", path.display()))?;
            return Ok(Login::Token(token.trim().to_owned()));
        }
        let (name, password) = (text(user, "username"), text(user, "password"));
        Ok(match (text(user, "token"), name) {
            (Some(token), _) => Login::Token(token.to_owned()),
            (None, Some(user)) => {
                Login::Password { user: user.to_owned(), password: password.unwrap_or_default().to_owned() }
            }
            (None, None) => Login::None,
        })
    }

    /// What `KEY-data` holds, or the file that `KEY` names.
    fn pem(&mut self, entry: Value<'_>, key: &str) -> Result<Option<Pem>, String> {
        if let Some(data) = text(entry, &format!("{key}-data")) {
            let bad = |reason: String| format!("{key}-data: {reason}");
            let decoded = STANDARD.decode(data.trim()).map_err(|error| bad(error.to_string()))?;
            let decoded = String::from_utf8(decoded).map_err(|error| bad(error.to_string()))?;
            return Ok(Some(Pem::new(format!("{key}-data of {}", self.name), decoded)));
        }
        Ok(text(entry, key).map(|file| Pem::read(&self.path(file))))
    }

    fn path(&mut self, file: &str) -> PathBuf {
        let path = self.folder.join(file);
        self.files.push(path.clone());
        path
    }
}

/// The text of a scalar that is there and not empty.
fn text<'a>(entry: Value<'a>, key: &str) -> Option<&'a str> {
    entry.get(key)?.text().filter(|text| !text.is_empty())
}

/// The entry of a list that is called `name`.
fn named<'a>(root: Value<'a>, list: &str, entry: &str, name: &str) -> Result<Value<'a>, String> {
    let entries = root.get(list).into_iter().flat_map(Value::items);
    let found = entries.into_iter().find(|item| text(*item, "name") == Some(name));
    found.and_then(|item| item.get(entry)).ok_or_else(|| format!("{list} has no {name}"))
}

fn read_file(path: &Path) -> Result<String, String> {
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > FILE_LIMIT_BYTES {
        return Err(format!("{length} bytes; expected no more than {FILE_LIMIT_BYTES}"));
    }
    fs::read_to_string(path).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, files: &[(&str, &str)]) -> Result<Kubeconfig, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let path = dir.path().join("kubelet.conf");
        fs::write(&path, text).unwrap();
        Kubeconfig::read(&path).map_err(|error| error.to_string())
    }

    fn with_user(user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: default\n\
             contexts:\n- {{name: other, context: {{cluster: x, user: x}}}}\n\
             - {{name: default, context: {{cluster: c, user: u}}}}\n\
             clusters:\n- name: c\n  cluster:\n    server: https://10.0.0.1:6443/\n    certificate-authority-data: {}\n\
             users:\n- name: u\n  user:\n{user}",
            STANDARD.encode("the authority")
        )
    }

    #[test]
    fn the_current_context_says_where_and_who() {
        // As kubeadm writes it for a kubelet: certificate and key in one file, which is replaced.
        let user = "    client-certificate: pki/current.pem\n    client-key: pki/current.pem\n";
        let found = read(&with_user(user), &[]).unwrap();
        assert_eq!(found.server, "https://10.0.0.1:6443");
        assert_eq!(found.connection.authorities[0].text.as_deref(), Ok("the authority"));
        assert!(found.connection.without_system && !found.connection.skip_verify);
        let client = found.connection.client.unwrap();
        assert!(client.chain.name.ends_with("/pki/current.pem") && client.key.is_some());
        assert!(found.files.iter().any(|file| file.ends_with("pki/current.pem")), "{:?}", found.files);
    }

    #[test]
    fn tokens_are_inline_or_in_a_file() {
        let token = |found: Kubeconfig| match found.login {
            Login::Token(token) => token,
            other => panic!("{other:?}"),
        };
        assert_eq!(token(read(&with_user("    token: abc\n"), &[]).unwrap()), "abc");
        let file = [("token", "from a file\n")];
        assert_eq!(token(read(&with_user("    tokenFile: token\n"), &file).unwrap()), "from a file");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (text, expected) in [
            (with_user("    exec: {command: aws}\n"), "exec is not supported"),
            (with_user("    auth-provider: {name: gcp}\n"), "auth-provider is not supported"),
            (
                with_user("    token: x\n").replace("current-context: default", "current-context: gone"),
                "contexts has no gone",
            ),
            (with_user("    token: x\n").replace("https://10", "ftp://10"), "expected https://"),
            (with_user("    client-certificate-data: '%'\n"), "client-certificate-data"),
            (with_user("    tokenFile: missing\n"), "missing"),
            ("a: [".to_owned(), "line"),
            (String::new(), "it is empty"),
        ] {
            let error = read(&text, &[]).unwrap_err();
            assert!(error.contains(expected) && error.contains("kubelet.conf"), "{expected}: {error}");
        }
    }
}
