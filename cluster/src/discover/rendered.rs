//! What a tree's templates become on nodes: where there is `NAME.tmpl`, a file `NAME`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::template::{self, Templates};
use super::tree::{Tree, TreeError};
use super::{DiscoverError, Options};
use crate::helm::Helm;

/// Where sealer or sealos look for templates, and where discovery does.
const FOLDERS: [&str; 5] = ["etc", "scripts", "manifests", "charts", "application"];
/// What their names end in.
pub(super) const TEMPLATE: &str = ".tmpl";

/// What the templates in the tree `dir` are rendered to, by the paths that these files have in the tree. Of the options the environment
/// and helm hold.
///
/// # Errors
///
/// When the tree cannot be read, or a template cannot be rendered.
pub async fn rendered(dir: &Path, options: &Options) -> Result<BTreeMap<String, String>, DiscoverError> {
    let root = dir.to_owned();
    let templates = tokio::task::spawn_blocking(move || find(&root)).await??;
    let helm = Helm::new(options.helm.as_deref(), options.helm_deadline);
    let mut files = BTreeMap::new();
    for (file, text) in template::render(&helm, &templates, &options.environment).await {
        let name = file.trim_end_matches(TEMPLATE).to_owned();
        let text = text.map_err(|error| DiscoverError::Template {
            place: error.line.map_or_else(|| file.clone(), |line| format!("{file}:{line}")),
            reason: error.reason,
        })?;
        files.insert(name, text);
    }
    Ok(files)
}

fn find(root: &Path) -> Result<Templates, TreeError> {
    let tree = Tree::open(root)?;
    let mut found: Vec<PathBuf> = Vec::new();
    for folder in FOLDERS.map(Path::new).into_iter().filter(|folder| tree.is_dir(folder)) {
        tree.walk(folder, &mut |entry| {
            if !entry.is_dir && entry.path.to_string_lossy().ends_with(TEMPLATE) {
                found.push(entry.path.clone());
            }
            true
        })?;
    }
    found.into_iter().map(|path| Ok((path.display().to_string(), tree.text(&path)?))).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_tree_without_templates_needs_no_helm() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/kubeadm.yaml"), "kind: A\n").unwrap();
        // Elsewhere a name says nothing.
        fs::write(dir.path().join("config.toml.tmpl"), "{{ .A }}").unwrap();
        let options = Options { helm: Some("/no/such/helm".into()), ..Options::default() };
        assert_eq!(rendered(dir.path(), &options).await.unwrap(), BTreeMap::new());
        fs::write(dir.path().join("etc/own.tmpl"), "{{ .A }}").unwrap();
        let error = rendered(dir.path(), &options).await.unwrap_err().to_string();
        assert!(error.starts_with("etc/own.tmpl: helm is needed"), "{error}");
    }
}
