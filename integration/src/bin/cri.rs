//! A CRI client for use by hand: pull, run, exec, look at logs, remove.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::{Parser, Subcommand};
use integration::cri::{ContainerSpec, Cri};

/// Talks to containerd as the kubelet does. Pods use the host's network.
#[derive(Debug, Parser)]
#[command(name = "cri")]
struct Arguments {
    /// The socket of containerd.
    #[arg(long, env = "CONTAINERD_ADDRESS", default_value = "/run/containerd/containerd.sock")]
    address: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Pull an image.
    Pull { image: String },
    /// List images.
    Images,
    /// Remove an image.
    Rmi { image: String },
    /// Pull an image, start a pod with one container of it, print the container's id.
    Run {
        /// Name of the pod and the container.
        #[arg(long, default_value = "demo")]
        name: String,
        /// Variables of the container, NAME=VALUE.
        #[arg(long)]
        env: Vec<String>,
        image: String,
        /// The command; the image's own if left out.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// List containers.
    Ps,
    /// Run a command in a container, given by id or name.
    Exec {
        container: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Print what a container, given by id or name, has written.
    Logs { container: String },
    /// Stop and remove a container, given by id or name.
    Rm { container: String },
    /// Stop and remove all pods.
    RmPods,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let cri = Cri::connect(&arguments.address)?;
    match arguments.action {
        Action::Pull { image } => println!("{}", cri.pull(&image)?),
        Action::Images => cri.images()?.iter().for_each(|image| println!("{image}")),
        Action::Rmi { image } => cri.remove_image(&image)?,
        Action::Run { name, env, image, command } => println!("{}", run(&cri, name, &env, image, command)?),
        Action::Ps => cri.containers()?.iter().for_each(|(id, name)| println!("{id}\t{name}")),
        Action::Exec { container, command } => {
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            let executed = cri.exec(&find(&cri, &container)?, &words)?;
            io::stdout().write_all(&executed.stdout)?;
            io::stderr().write_all(&executed.stderr)?;
            return Ok(ExitCode::from(u8::try_from(executed.code).unwrap_or(u8::MAX)));
        }
        Action::Logs { container } => print!("{}", cri.logs(&find(&cri, &container)?)?),
        Action::Rm { container } => cri.remove_container(&find(&cri, &container)?)?,
        Action::RmPods => cri.remove_all_pods()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run(cri: &Cri, name: String, env: &[String], image: String, command: Vec<String>) -> Result<String> {
    if !cri.has_image(&image)? {
        cri.pull(&image)?;
    }
    let mut variables = Vec::new();
    for pair in env {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| anyhow!("--env {pair}: NAME=VALUE is expected"))?;
        variables.push((key.to_owned(), value.to_owned()));
    }
    let logs = std::env::temp_dir().join(format!("cri-{name}"));
    let pod = cri.run_pod(&name, Path::new(&logs))?;
    cri.run_container(&pod, &ContainerSpec { name, image, command, env: variables, read_only: false })
}

fn find(cri: &Cri, wanted: &str) -> Result<String> {
    let found: Vec<String> = cri
        .containers()?
        .into_iter()
        .filter(|(id, name)| id.starts_with(wanted) || name == wanted)
        .map(|(id, _)| id)
        .collect();
    match found.as_slice() {
        [id] => Ok(id.clone()),
        [] => bail!("no container {wanted}"),
        _ => bail!("more than one container {wanted}: use its id"),
    }
}
