//! Kustomizations: which images they put in place of which others, in which files and in which other kustomizations.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use super::{Reader, Role};
use crate::discover::ask::{Request, Requests};
use yaml::Value;

/// How deep kustomizations may lie in one another.
const DEPTH_LIMIT: usize = 32;
/// How many images all of them together may make of those that they name.
const REQUESTS_LIMIT: usize = 100_000;

/// Whether `file` is a kustomization by its name, as kustomize has it.
pub(crate) fn is_kustomization(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    matches!(name, "kustomization.yaml" | "kustomization.yml" | "Kustomization")
}

impl Reader<'_> {
    /// A kustomization's `images`.
    pub(super) fn kustomization(&mut self, object: Value<'_>) {
        if let Some(images) = object.get("images") {
            self.replacements(images);
        }
    }

    /// What each entry of `images` puts in place of the images of its name.
    pub(super) fn replacements(&mut self, images: Value<'_>) {
        for entry in images.items() {
            if !self.first(Role::Container, entry) {
                continue;
            }
            let at = |key: &str| entry.get(key).and_then(Value::text).filter(|text| !text.is_empty());
            let Some(name) = at("newName").or(at("name")) else { continue };
            let text = match (at("digest"), at("newTag")) {
                (Some(digest), _) => format!("{name}@{digest}"),
                (None, Some(tag)) => format!("{name}:{tag}"),
                // With the tag of what it replaces: that one is known where it is used.
                (None, None) => continue,
            };
            self.ask_text(&text, entry.line(), self.context.way);
        }
    }
}

/// What a kustomization does to the files and folders that it names.
#[derive(Debug, Default)]
pub(crate) struct Kustomization {
    /// Itself, as a path in the tree.
    file: PathBuf,
    /// The files, and the folders with a kustomization of their own, as paths in the tree.
    resources: Vec<PathBuf>,
    /// Folders whose kustomization is done to what the resources give, before this one.
    components: Vec<PathBuf>,
    replacements: Vec<Replacement>,
}

#[derive(Debug)]
struct Replacement {
    name: String,
    new_name: Option<String>,
    /// Whether it says the tag or digest too.
    complete: bool,
}

impl Kustomization {
    /// Reads the kustomization `text` of `file`.
    pub(crate) fn read(file: &Path, text: &str) -> Self {
        let folder = file.parent().unwrap_or(Path::new(""));
        let mut kustomization = Self { file: file.to_owned(), ..Self::default() };
        for document in &yaml::parse(text).documents {
            let paths = |key: &str| {
                let texts =
                    document.root().get(key).into_iter().flat_map(Value::items).filter_map(Value::text);
                texts.filter_map(|path| normalised(&folder.join(path))).collect::<Vec<_>>()
            };
            // The older word for folders among them.
            kustomization.resources.extend(["resources", "bases"].into_iter().flat_map(paths));
            kustomization.components.extend(paths("components"));
            for entry in document.root().get("images").into_iter().flat_map(Value::items) {
                let at = |key: &str| entry.get(key).and_then(Value::text).map(str::to_owned);
                let complete = at("newTag").or(at("digest")).is_some();
                if let Some(name) = at("name") {
                    kustomization.replacements.push(Replacement { name, new_name: at("newName"), complete });
                }
            }
        }
        kustomization
    }

    fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    /// What becomes of what a resource asks for.
    fn replaced(&self, mut request: Request) -> Option<Request> {
        let (name, rest) = split(&request.text);
        let Some(replacement) = self.replacements.iter().find(|replacement| replacement.name == name) else {
            return Some(request);
        };
        if let Some(new_name) = &replacement.new_name {
            request.text = format!("{new_name}{rest}");
        }
        // The complete ones are asked for where they stand.
        (!replacement.complete).then_some(request)
    }
}

/// Puts what `kustomizations` make of the files that they name in place of what these ask for. One folder may be the base of several:
/// each has its own images of it.
pub(crate) fn apply(kustomizations: &[Kustomization], requests: &mut Requests) {
    if kustomizations.is_empty() {
        return;
    }
    let paths = kustomizations.iter().flat_map(|one| one.resources.iter().chain([&one.file]));
    let named: HashSet<&Path> = paths.map(PathBuf::as_path).collect();
    let all = std::mem::take(&mut requests.requests).into_iter();
    let (used, rest): (Vec<_>, Vec<_>) =
        all.partition(|request| named.contains(Path::new(&request.origin.file)));
    requests.requests = rest;
    let mut of_files: HashMap<PathBuf, Vec<Request>> = HashMap::new();
    for request in used {
        of_files.entry(PathBuf::from(&request.origin.file)).or_default().push(request);
    }
    let folders = folders(kustomizations, requests);
    let mut build =
        Build { kustomizations, of_files, folders, built: HashMap::new(), left: REQUESTS_LIMIT, requests };
    let paths = kustomizations.iter().flat_map(|one| one.resources.iter().chain(&one.components));
    let inner: HashSet<usize> = paths.filter_map(|path| build.folders.get(path.as_path()).copied()).collect();
    // Those that are in nobody's, then what is left: those that are in each other's.
    let all = 0..kustomizations.len();
    for number in all.clone().filter(|number| !inner.contains(number)).chain(all) {
        let is_new = !build.built.contains_key(&number);
        let made = build.build(number, 0);
        if is_new {
            build.requests.requests.extend(made.iter().cloned());
        }
    }
}

/// The number of each folder's kustomization. Of two in one folder kustomize builds neither, so nobody could say whose images they are.
fn folders<'a>(kustomizations: &'a [Kustomization], requests: &mut Requests) -> HashMap<&'a Path, usize> {
    let mut folders = HashMap::new();
    for (number, one) in kustomizations.iter().enumerate() {
        let first = *folders.entry(one.folder()).or_insert(number);
        if let Some(first) = kustomizations.get(first).filter(|_| first != number) {
            let first = first.file.display();
            let reason = format!("its folder has {first} too: kustomize builds none that has two");
            requests.problem(one.file.display().to_string(), None, reason);
        }
    }
    folders
}

/// Kustomizations that are built, as `kustomize build` does.
struct Build<'a> {
    kustomizations: &'a [Kustomization],
    /// What files ask for that kustomizations name, or are.
    of_files: HashMap<PathBuf, Vec<Request>>,
    folders: HashMap<&'a Path, usize>,
    /// What each makes; nothing yet while it is built.
    built: HashMap<usize, Rc<BTreeSet<Request>>>,
    /// How many more requests there may be.
    left: usize,
    requests: &'a mut Requests,
}

impl Build<'_> {
    /// What a kustomization makes of its resources.
    fn build(&mut self, number: usize, depth: usize) -> Rc<BTreeSet<Request>> {
        if let Some(built) = self.built.get(&number) {
            return Rc::clone(built);
        }
        self.built.insert(number, Rc::default());
        let made = Rc::new(self.made(number, depth).unwrap_or_default());
        self.built.insert(number, Rc::clone(&made));
        made
    }

    fn made(&mut self, number: usize, depth: usize) -> Option<BTreeSet<Request>> {
        let kustomization = self.kustomizations.get(number)?;
        let mut made = self.resources(kustomization, depth)?;
        for path in &kustomization.components {
            let component =
                self.folders.get(path.as_path()).and_then(|number| self.kustomizations.get(*number));
            let Some(component) = component else { continue };
            made.extend(self.resources(component, depth)?);
            made = self.transformed(component, made);
        }
        made = self.transformed(kustomization, made);
        self.left = self.left.checked_sub(made.len()).or_else(|| {
            let reason = format!("kustomizations ask for more than {REQUESTS_LIMIT} images together");
            self.requests.problem(kustomization.file.display().to_string(), None, reason);
            None
        })?;
        Some(made)
    }

    fn resources(&mut self, kustomization: &Kustomization, depth: usize) -> Option<BTreeSet<Request>> {
        let mut found = BTreeSet::new();
        for resource in &kustomization.resources {
            if let Some(&base) = self.folders.get(resource.as_path()) {
                if depth == DEPTH_LIMIT {
                    let reason = format!("kustomizations lie more than {DEPTH_LIMIT} deep in one another");
                    self.requests.problem(kustomization.file.display().to_string(), None, reason);
                    return None;
                }
                found.extend(self.build(base, depth + 1).iter().cloned());
            } else if let Some(requests) = self.of_files.get(resource) {
                found.extend(requests.iter().cloned());
            }
        }
        Some(found)
    }

    /// With the images of a kustomization in place of others, which are asked for where they stand.
    fn transformed(&self, kustomization: &Kustomization, found: BTreeSet<Request>) -> BTreeSet<Request> {
        let own = self.of_files.get(&kustomization.file).into_iter().flatten().cloned();
        found.into_iter().filter_map(|request| kustomization.replaced(request)).chain(own).collect()
    }
}

/// An image's name, and the tag or digest with what comes before it.
fn split(text: &str) -> (&str, &str) {
    let end = text.find('@').unwrap_or(text.len());
    let folder = text[..end].rfind('/').map_or(0, |slash| slash + 1);
    let end = text[folder..end].find(':').map_or(end, |colon| folder + colon);
    text.split_at(end)
}

/// `path` without `.` and `..`; nothing if it leaves the tree.
fn normalised(path: &Path) -> Option<PathBuf> {
    let mut result = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => result.pop().then_some(())?,
            Component::Normal(name) => result.push(name),
            _ => {}
        }
    }
    Some(result)
}
