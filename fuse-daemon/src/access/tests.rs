use std::path::PathBuf;

use registry::client::{ClientConfig, Credentials, Found, Place};

use super::*;

const WAIT: Duration = Duration::from_secs(20);

fn accesses(docker_config: PathBuf) -> Arc<Accesses> {
    let docker_config = Some(docker_config);
    let config = ClientConfig { certs_dir: PathBuf::new(), docker_config, ..ClientConfig::default() };
    Arc::new(Accesses::new(Client::new(config).unwrap()))
}

fn without_files() -> Arc<Accesses> {
    accesses(PathBuf::from("/nonexistent"))
}

fn repository() -> Repository {
    Repository::parse("r.example/app").unwrap()
}

fn of_user(user: &str) -> RepositoryAccess {
    let credentials = Credentials::Basic { user: user.to_owned(), password: "p".to_owned() };
    let place = Place {
        host: "r.example".to_owned(),
        base: "https://r.example".to_owned(),
        api: "/v2".to_owned(),
        mirror: false,
        connection: Default::default(),
        credentials: Found { credentials, origin: String::new() },
    };
    RepositoryAccess { places: vec![place] }
}

fn user(accesses: &Accesses) -> Option<String> {
    let access = accesses.access("r.example", "app")?;
    match &access.places[0].credentials.credentials {
        Credentials::Basic { user, .. } => Some(user.clone()),
        _ => None,
    }
}

#[tokio::test]
async fn the_broker_is_told_once_and_everybody_waits_for_its_answer() {
    let accesses = without_files();
    accesses.hand_out(&repository(), of_user("first"));
    let broker = {
        let accesses = Arc::clone(&accesses);
        tokio::spawn(async move {
            let wanted = accesses.renewals(WAIT).await;
            assert_eq!(wanted, ["r.example/app"]);
            accesses.hand_out(&repository(), of_user("second"));
            // Nothing more is wanted: whoever was refused has what it needs.
            assert_eq!(accesses.renewals(Duration::from_millis(50)).await, [""; 0]);
        })
    };
    while accesses.lock().waiting == 0 {
        tokio::task::yield_now().await;
    }
    let renewals = (0..8).map(|_| accesses.renew("r.example", "app"));
    futures::future::join_all(renewals).await;
    assert_eq!(user(&accesses).as_deref(), Some("second"));
    broker.await.unwrap();
}

#[tokio::test]
async fn without_a_broker_nobody_waits_and_what_there_is_stays() {
    let accesses = without_files();
    accesses.hand_out(&repository(), of_user("first"));
    accesses.renew("r.example", "app").now_or_never().expect("nobody waits");
    assert_eq!(user(&accesses).as_deref(), Some("first"));
}

#[tokio::test]
async fn what_our_own_files_do_not_open_waits_for_a_broker_that_is_to_come() {
    let accesses = without_files();
    accesses.ensure(&repository()).await;
    // As with a mount that is taken over: the daemon before had been told more.
    accesses.expect_broker();
    let broker = async {
        assert_eq!(accesses.renewals(WAIT).await, ["r.example/app"]);
        accesses.hand_out(&repository(), of_user("of a pod"));
    };
    tokio::join!(accesses.renew("r.example", "app"), broker);
    assert_eq!(user(&accesses).as_deref(), Some("of a pod"));
}

#[tokio::test]
async fn a_broker_that_starts_again_is_waited_for() {
    let accesses = without_files();
    accesses.hand_out(&repository(), of_user("first"));
    assert_eq!(accesses.renewals(Duration::ZERO).await, [""; 0]);
    let renewal = accesses.renew("r.example", "app");
    let next = async {
        assert_eq!(accesses.renewals(WAIT).await, ["r.example/app"]);
        accesses.hand_out(&repository(), of_user("second"));
    };
    // Refused while there is none.
    tokio::join!(renewal, next);
    assert_eq!(user(&accesses).as_deref(), Some("second"));
}

#[tokio::test]
async fn a_broker_with_nothing_better_is_not_asked_at_once_again() {
    let accesses = without_files();
    accesses.hand_out(&repository(), of_user("first"));
    let broker = async {
        let told = accesses.renewals(WAIT).await.len();
        accesses.hand_out(&repository(), of_user("first"));
        told + accesses.renewals(Duration::from_millis(200)).await.len()
    };
    let reader = async {
        accesses.renew("r.example", "app").await;
        accesses.renew("r.example", "app").await;
    };
    assert_eq!(tokio::join!(broker, reader).0, 1);
}

/// The broker hands out what a file says, and then a request is refused that was sent before.
#[tokio::test]
async fn who_was_refused_just_before_a_change_holds_up_no_other_renewal() {
    let accesses = without_files();
    accesses.hand_out(&repository(), of_user("first"));
    accesses.hand_out(&repository(), of_user("second"));
    let broker = async {
        for user in ["second", "third"] {
            assert_eq!(accesses.renewals(WAIT).await, ["r.example/app"]);
            accesses.hand_out(&repository(), of_user(user));
        }
    };
    let readers = async {
        accesses.renew("r.example", "app").await;
        // What was handed out ends too.
        accesses.renew("r.example", "app").await;
        user(&accesses)
    };
    let both = tokio::time::timeout(WAIT, async { tokio::join!(broker, readers) }).await;
    assert_eq!(both.expect("the second renewal is asked for").1.as_deref(), Some("third"));
}

#[tokio::test]
async fn our_own_files_are_read_where_nothing_is_handed_out_and_again_when_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let log_in = |user: &str| {
        let auths = format!(r#"{{"auths": {{"r.example": {{"username": "{user}", "password": "p"}}}}}}"#);
        std::fs::write(&path, auths).unwrap();
    };
    log_in("first");
    let accesses = accesses(path.clone());
    assert!(accesses.access("r.example", "app").is_none());
    accesses.ensure(&repository()).await;
    assert_eq!(user(&accesses).as_deref(), Some("first"));
    log_in("second");
    accesses.ensure(&repository()).await;
    assert_eq!(user(&accesses).as_deref(), Some("first"));
    accesses.renew("r.example", "app").await;
    assert_eq!(user(&accesses).as_deref(), Some("second"));
    // From then on the broker's word counts.
    accesses.hand_out(&repository(), of_user("brokered"));
    accesses.renew("r.example", "app").await;
    assert_eq!(user(&accesses).as_deref(), Some("brokered"));
}
