//! What launches an image, in the words of either system.

use super::place::quoted;
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

/// How sealer launches an application: by its own command, or as one of its kind is launched.
fn application(description: &Description, name: &str) -> String {
    let folder = format!("application/apps/{name}");
    let Some(application) = description.applications.iter().find(|application| application.name == name)
    else {
        return format!("kubectl apply -f {folder}");
    };
    let each = |program: &str| {
        let files =
            application.files.iter().map(|file| format!("{program} {}", quoted(&format!("{folder}/{file}"))));
        files.collect::<Vec<_>>().join(" && ")
    };
    let command = match (application.kind.as_str(), application.files.is_empty()) {
        _ if !application.cmds.is_empty() => format!("cd {folder} && {}", application.cmds.join(" ")),
        ("helm", _) => format!("helm upgrade --install {name} {folder}"),
        ("shell", true) => format!("for script in {folder}/*.sh; do bash \"$script\"; done"),
        ("shell", false) => each("bash"),
        (_, true) => format!("kubectl apply -f {folder}"),
        (_, false) => each("kubectl apply -f"),
    };
    let environment =
        application.env.iter().map(|(name, value)| format!("export {name}={}; ", quoted(value)));
    environment.chain([command]).collect()
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
    use crate::describe::{Application, SealerLaunch};

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_application_says_itself_how_it_is_launched() {
        let of = |application: &str| {
            let application = serde_json::from_str(application).unwrap();
            let launch = SealerLaunch { cmds: Vec::new(), app_names: words(&["a"]) };
            let mut description = Description::default();
            description.applications.push(application);
            description.launch = launch;
            commands(&description, &[], &[]).remove(0)
        };
        let said = of(r#"{"name":"a","type":"kube","files":["1.yaml","2 b.yaml"],"env":null,"cmds":null}"#);
        assert_eq!(
            said,
            "kubectl apply -f 'application/apps/a/1.yaml' && kubectl apply -f 'application/apps/a/2 b.yaml'"
        );
        let said = of(r#"{"name":"a","type":"shell","files":["go.sh"],"env":{"WORD":"it's"}}"#);
        assert_eq!(said, "export WORD='it'\\''s'; bash 'application/apps/a/go.sh'");
        let said = of(r#"{"name":"a","type":"helm","cmds":["helm","install","a","."]}"#);
        assert_eq!(said, "cd application/apps/a && helm install a .");
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
        description.launch = SealerLaunch { cmds: Vec::new(), app_names: words(&["db", "web"]) };
        let expected =
            ["helm upgrade --install db application/apps/db", "kubectl apply -f application/apps/web"];
        assert_eq!(commands(&description, &[], &cmd), expected);
        description.launch.cmds = words(&["bash go.sh"]);
        assert_eq!(commands(&description, &[], &cmd), ["bash go.sh"]);
    }
}
