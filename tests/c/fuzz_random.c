/* Calls a fuzz target with random bytes, where the compiler has no fuzzer of its own:
 *   fuzz_interface SECONDS [SEED]      or, for an input that ended the program,     fuzz_interface FILE */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "cases.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#else
#define __sanitizer_set_death_callback(function) ((void)(function))
#endif

enum { LONGEST = 1024 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t input[LONGEST];
static size_t length;

static void save(void)
{
    FILE *file = fopen("fuzz-failure", "wb");
    if (!file) return;
    fwrite(input, 1, length, file);
    fclose(file);
    fprintf(stderr, "the input is in the file fuzz-failure\n");
}

static void save_on_abort(int signal_number)
{
    save();
    signal(signal_number, SIG_DFL);
}

static int replay(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        return 1;
    }
    length = fread(input, 1, LONGEST, file);
    fclose(file);
    return LLVMFuzzerTestOneInput(input, length);
}

int main(int count, char **arguments)
{
    char *end = NULL;
    const double seconds = count > 1 ? strtod(arguments[1], &end) : 10.0;
    if (end && *end) return replay(arguments[1]);
    uint64_t random = count > 2 ? strtoull(arguments[2], NULL, 10) | 1 : (uint64_t)time(NULL) | 1;
    printf("seed %llu\n", (unsigned long long)random);
    signal(SIGABRT, save_on_abort);
    __sanitizer_set_death_callback(save);
    const time_t begin = time(NULL);
    long runs = 0;
    for (; difftime(time(NULL), begin) < seconds; runs++) {
        length = random_bits(&random) % LONGEST;
        for (size_t i = 0; i < length; i++) input[i] = (uint8_t)(random_bits(&random) >> 56);
        LLVMFuzzerTestOneInput(input, length);
    }
    printf("%ld inputs\n", runs);
    return 0;
}
