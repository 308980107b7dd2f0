/* The server without a model: listening sockets, the states before ready, opening and closing. */
#include "api/api.h"
#include "base/clock.h"
#include "tests/client.h"

#include <arpa/inet.h>
#include <check.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static char dir[64], path[96];

static void start(void)
{
    snprintf(dir, sizeof dir, "/tmp/inferd-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/socket", dir);
}

static void stop(void)
{
    unlink(path);
    rmdir(dir);
}

static int get(int port, const char *url, struct buf *body)
{
    return client_get(port, url, body, NULL);
}

START_TEST(states)
{
    struct err err = {0};
    struct buf body = {0};
    struct api *a = api_open(&(struct api_options){0}, &err);
    ck_assert_msg(a != NULL, "%s", err.msg);
    int port = api_port(a);
    ck_assert_int_gt(port, 0);
    char uri[64];
    snprintf(uri, sizeof uri, "http://127.0.0.1:%d", port);
    ck_assert_str_eq(api_uri(a), uri);
    api_set_facts(a, &(struct worker_facts){.worker_id = "w", .model = "m \"quoted\"", .device = "cpu"});
    api_set_state(a, WORKER_LOADING, 42);

    ck_assert_int_eq(get(port, "/health", &body), 503);
    ck_assert_ptr_nonnull(strstr(body.data, "\"status\":\"loading\",\"state\":\"loading\""));
    ck_assert_ptr_nonnull(strstr(body.data, "\"load_percent\":42"));
    ck_assert_ptr_nonnull(strstr(body.data, "\"model\":\"m \\\"quoted\\\"\""));
    ck_assert_ptr_nonnull(strstr(body.data, "\"auth\":false"));
    ck_assert_int_eq(get(port, "/health/live", NULL), 200);
    ck_assert_int_eq(get(port, "/health/ready", NULL), 503);
    ck_assert_int_eq(get(port, "/metrics", NULL), 200);
    ck_assert_int_eq(client_request(port, "/execute", "{\"job_id\":\"a\",\"prompt\":\"x\"}", &body), 503);
    ck_assert_ptr_nonnull(strstr(body.data, "\"code\":\"NOT_READY\""));
    ck_assert_int_eq(client_request(port, "/cancel", "{\"job_id\":\"a\"}", NULL), 202);

    api_set_state(a, WORKER_DRAINING, 100);
    ck_assert_int_eq(get(port, "/health", &body), 503);
    ck_assert_ptr_nonnull(strstr(body.data, "\"status\":\"draining\""));
    ck_assert_int_eq(get(port, "/health/live", NULL), 200);
    ck_assert_int_eq(client_request(port, "/execute", "{}", &body), 503);
    ck_assert_ptr_nonnull(strstr(body.data, "\"code\":\"DRAINING\""));

    api_set_state(a, WORKER_FAILED, 100);
    ck_assert_int_eq(get(port, "/health/live", &body), 503);
    ck_assert_ptr_nonnull(strstr(body.data, "\"status\":\"unhealthy\",\"state\":\"failed\""));
    buf_free(&body);
    api_close(a);
    ck_assert_int_eq(get(port, "/health", NULL), 0);
}
END_TEST

START_TEST(closing_is_quick)
{
    struct err err = {0};
    struct client idle, half;
    struct api *a = api_open(&(struct api_options){0}, &err);
    ck_assert_ptr_nonnull(a);
    ck_assert(client_open(&idle, api_port(a)));
    ck_assert(client_open(&half, api_port(a)) && client_puts(&half, "POST /cancel HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"));
    usleep(20000);
    uint64_t begin = clock_ns();
    api_close(a);
    ck_assert_int_lt((int)clock_ms_since(begin), 300);
    ck_assert(client_wait_close(&idle, 100) && client_wait_close(&half, 100));
    client_close(&idle);
    client_close(&half);
}
END_TEST

/* E04 */
START_TEST(port_in_use)
{
    struct err err = {0};
    char port[16];
    struct api *a = api_open(&(struct api_options){0}, &err);
    ck_assert_ptr_nonnull(a);
    ck_assert_ptr_null(api_open(&(struct api_options){.port = api_port(a)}, &err));
    snprintf(port, sizeof port, "%d", api_port(a));
    ck_assert_int_eq(err.code, ERR_SYSTEM);
    ck_assert_msg(strstr(err.msg, port) && strstr(err.msg, "127.0.0.1") && strstr(err.msg, "in use"), "%s", err.msg);
    api_close(a);
    ck_assert_ptr_null(api_open(&(struct api_options){.host = "192.0.2.1", .port = 80}, &err));
    ck_assert_int_eq(err.code, ERR_SYSTEM);
    ck_assert_ptr_null(api_open(&(struct api_options){.host = "no such host", .port = 80}, &err));
    ck_assert_int_eq(err.code, ERR_SYSTEM);
}
END_TEST

static int connect_unix(void)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(un.sun_path, sizeof un.sun_path, "%s", path);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&un, sizeof un), 0);
    return fd;
}

START_TEST(unix_socket)
{
    struct err err = {0};
    struct api_options o = {.unix_socket = path};
    struct answer an;
    struct stat st;
    for (int round = 0; round < 2; round++) {
        struct api *a = api_open(&o, &err);
        ck_assert_msg(a != NULL, "%s", err.msg);
        ck_assert_int_eq(api_port(a), 0);
        ck_assert_int_eq(strncmp(api_uri(a), "unix:/tmp/", 10), 0);
        struct client c = {.fd = connect_unix()};
        ck_assert(client_puts(&c, "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"));
        ck_assert(client_answer(&c, &an, false, 2000) && an.status == 200);
        answer_free(&an);
        /* somebody listens there */
        ck_assert_ptr_null(api_open(&o, &err));
        ck_assert_int_eq(err.code, ERR_SYSTEM);
        api_close(a);
        client_close(&c);
        ck_assert_int_ne(stat(path, &st), 0);
        /* a dead socket is in the way of the second round */
        int dead = socket(AF_UNIX, SOCK_STREAM, 0);
        struct sockaddr_un un = {.sun_family = AF_UNIX};
        snprintf(un.sun_path, sizeof un.sun_path, "%s", path);
        ck_assert_int_eq(bind(dead, (struct sockaddr *)&un, sizeof un), 0);
        close(dead);
    }
    unlink(path);
    int plain = open(path, O_CREAT | O_WRONLY, 0600);
    ck_assert_int_ge(plain, 0);
    close(plain);
    ck_assert_ptr_null(api_open(&o, &err));
    ck_assert_int_eq(err.code, ERR_SYSTEM);
    ck_assert_int_eq(stat(path, &st), 0);

    char longer[256];
    memset(longer, 'a', 200);
    longer[200] = 0;
    ck_assert_ptr_null(api_open(&(struct api_options){.unix_socket = longer}, &err));
    ck_assert_int_eq(err.code, ERR_USAGE);
}
END_TEST

START_TEST(inherited_sockets)
{
    struct err err = {0};
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), pair[2];
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&in, sizeof in), 0);
    ck_assert_int_eq(listen(fd, 8), 0);
    struct api *a = api_open(&(struct api_options){.listen_fds = &fd, .n_listen_fds = 1}, &err);
    ck_assert_msg(a != NULL, "%s", err.msg);
    ck_assert_int_eq(get(api_port(a), "/health/live", NULL), 200);
    api_close(a);
    ck_assert_int_eq(pipe(pair), 0);
    ck_assert_ptr_null(api_open(&(struct api_options){.listen_fds = pair, .n_listen_fds = 1}, &err));
    ck_assert_int_eq(err.code, ERR_SYSTEM);
    ck_assert_int_eq(fcntl(pair[0], F_GETFD), -1);
    close(pair[1]);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("api_server");
    TCase *t = tcase_create("server");
    tcase_add_checked_fixture(t, start, stop);
    tcase_add_test(t, states);
    tcase_add_test(t, closing_is_quick);
    tcase_add_test(t, port_in_use);
    tcase_add_test(t, unix_socket);
    tcase_add_test(t, inherited_sockets);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
