/* The library's version, and the texts of its statuses. */
#include "include/bncore.h"

#define TEXT(name, number, text)                                                                   \
    case name:                                                                                     \
        return text;

const char *bncore_status_string(bncore_status status)
{
    switch (status) {
        BNCORE_STATUS_LIST(TEXT)
    }
    return "unknown status";
}

const char *bncore_version(void)
{
    return BNCORE_VERSION;
}

int bncore_abi_version(void)
{
    return BNCORE_ABI_VERSION;
}
