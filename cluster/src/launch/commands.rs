//! What launches an image, in the words of either system.

use crate::describe::Description;

/// Shell commands that launch the image, in their order: sealer's of the annotation; where there are none, `ENTRYPOINT` and
/// `CMD`, of which sealos takes each element as a command of its own.
pub fn commands(description: &Description, entrypoint: &[String], cmd: &[String]) -> Vec<String> {
    let launch = &description.launch;
    if !launch.cmds.is_empty() {
        return launch.cmds.clone();
    }
    if !launch.app_names.is_empty() {
        return launch.app_names.iter().map(|name| application(description, name)).collect();
    }
    [entrypoint, cmd].into_iter().flat_map(of_image).collect()
}

/// How sealer launches an application that says nothing else.
fn application(description: &Description, name: &str) -> String {
    let kind = description.applications.iter().find(|application| application.name == name);
    let folder = format!("application/apps/{name}");
    match kind.map(|application| application.kind.as_str()) {
        Some("helm") => format!("helm upgrade --install {name} {folder}"),
        Some("shell") => format!("for script in {folder}/*.sh; do bash \"$script\"; done"),
        _ => format!("kubectl apply -f {folder}"),
    }
}

fn of_image(words: &[String]) -> Vec<String> {
    match words {
        // What a Dockerfile makes of a command that is no list.
        [shell, flag, command] if shell == "/bin/sh" && flag == "-c" => vec![command.clone()],
        words => words.iter().filter(|word| !word.trim().is_empty()).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::describe::{Application, Launch};

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn sealers_words_come_before_the_images_own() {
        let cmd = words(&["kubectl apply -f manifests", "helm install a charts/a"]);
        let mut description = Description::default();
        assert_eq!(commands(&description, &[], &cmd), cmd);
        assert_eq!(commands(&description, &[], &words(&["/bin/sh", "-c", "a && b"])), ["a && b"]);
        assert_eq!(commands(&description, &words(&["init"]), &words(&["run"])), ["init", "run"]);

        let helm = Application { name: "db".to_owned(), kind: "helm".to_owned(), ..Application::default() };
        description.applications.push(helm);
        description.launch = Launch { cmds: Vec::new(), app_names: words(&["db", "web"]) };
        let expected =
            ["helm upgrade --install db application/apps/db", "kubectl apply -f application/apps/web"];
        assert_eq!(commands(&description, &[], &cmd), expected);
        description.launch.cmds = words(&["bash go.sh"]);
        assert_eq!(commands(&description, &[], &cmd), ["bash go.sh"]);
    }
}
