/* An alert when a temperature goes above a limit, and another when it is well back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double setting(const char *name, double otherwise) {
    const char *value = getenv(name);
    return value ? atof(value) : otherwise;
}

/* A value that is true in the state, which is one JSON object. */
static int is_set(const char *entry) {
    const char *state = getenv("SEDGE_STATE");
    return state && strstr(state, entry);
}

int main(int argc, char **argv) {
    char payload[256] = "";
    char *end;
    size_t length = fread(payload, 1, sizeof payload - 1, stdin);
    payload[length] = 0;
    double value = strtod(payload, &end);
    if (end == payload || argc < 2) {
        fprintf(stderr, "the payload is not a number: %s\n", payload);
        return 1;
    }

    double max = setting("max", 80), hysteresis = setting("hysteresis", 2);
    int firing = is_set("\"firing\":true");
    if (!firing && value > max) {
        printf("{\"kind\":\"alert\",\"key\":\"%s\",\"severity\":\"critical\",\"summary\":\"%g is above %g\",\"value\":%g}\n",
               argv[1], value, max, value);
        printf("{\"kind\":\"state\",\"key\":\"firing\",\"value\":true}\n");
    } else if (firing && value <= max - hysteresis) {
        printf("{\"kind\":\"alert\",\"key\":\"%s\",\"status\":\"resolved\",\"summary\":\"back to %g\",\"value\":%g}\n",
               argv[1], value, value);
        printf("{\"kind\":\"state\",\"key\":\"firing\",\"value\":null}\n");
    }
    return 0;
}
