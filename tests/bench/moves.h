// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef MOVES_H
#define MOVES_H

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

/// What both comparisons read: a fabric, its routes, and the packets to move.
struct Moves
{
    using Column = std::vector<int64_t>; //!< one array of the file

    Column isEndpoint;        //!< by node
    Column forwardPs;         //!< by node: head in to head out of a switch
    Column bufferBytes;       //!< by node: input buffer of a port
    Column linkSrc;           //!< by link; links 2e and 2e + 1 are the directions of a cable
    Column linkDst;           //!< by link
    Column linkRate;          //!< by link, bytes per second
    Column linkDelayPs;       //!< by link
    Column linkUsed;          //!< by link: of the UB network
    Column nodePlane;         //!< by node: plane of a switch
    Column row;               //!< by node: start of a switch's row in table
    Column klass;             //!< [plane][destination] class
    Column slot;              //!< [plane][destination] number within its class
    Column table;             //!< groups of next links by class; -2 and less: see Group
    Column local;             //!< groups of last links
    Column groupStart;        //!< [group + 1] start in groupLink
    Column groupLink;         //!< links of the groups
    Column source;            //!< nodes that send
    Column sourceStart;       //!< [source + 1] start of its packets
    Column sourceGapPs;       //!< by source: time between packets
    Column packetDst;         //!< by packet: number of its destination
    Column packetLink;        //!< by packet: link to leave the source on
    Column packetBytes;       //!< by packet: payload
    int64_t nDestinations{0}; //!< destinations
    int64_t headerBytes{0};   //!< added to each packet on the wire

    /**
     * @param [in] path The file.
     */
    explicit Moves(const char* path)
    {
        FILE* file = std::fopen(path, "rb");
        if (file == nullptr)
        {
            std::perror(path);
            std::exit(2);
        }
        for (Column* column : {&isEndpoint,
                               &forwardPs,
                               &bufferBytes,
                               &linkSrc,
                               &linkDst,
                               &linkRate,
                               &linkDelayPs,
                               &linkUsed,
                               &nodePlane,
                               &row,
                               &klass,
                               &slot,
                               &table,
                               &local,
                               &groupStart,
                               &groupLink,
                               &source,
                               &sourceStart,
                               &sourceGapPs,
                               &packetDst,
                               &packetLink,
                               &packetBytes})
        {
            column->resize(Number(file));
            if (std::fread(column->data(), sizeof(int64_t), column->size(), file) != column->size())
            {
                std::fprintf(stderr, "%s: too short\n", path);
                std::exit(2);
            }
        }
        nDestinations = Number(file);
        headerBytes = Number(file);
        std::fclose(file);
    }

    /**
     * @param [in] node A switch.
     * @param [in] destination Number of a destination.
     * @return The links that lead there, as ubfabric's engine looks them up.
     */
    int64_t Group(int64_t node, int64_t destination) const
    {
        const int64_t column = nodePlane[node] * nDestinations + destination;
        const int64_t entry = table[row[node] + klass[column]];
        return entry <= -2 ? local[slot[column] - (entry + 2)] : entry;
    }

    /**
     * @param [in] file The file.
     * @return The next number.
     */
    static int64_t Number(FILE* file)
    {
        int64_t number = 0;
        if (std::fread(&number, sizeof number, 1, file) != 1)
        {
            std::fputs("file too short\n", stderr);
            std::exit(2);
        }
        return number;
    }
};

/**
 * @return Processor time of this process, seconds.
 */
inline double
CpuSeconds()
{
    timespec now{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// What a comparison reports.
struct Report
{
    uint64_t packets{0};    //!< packets that arrived
    uint64_t bytes{0};      //!< their payload
    uint64_t packetHops{0}; //!< links crossed by all of them
    uint64_t events{0};     //!< events of the simulator
    int64_t simulatedPs{0}; //!< time of the last arrival
    double cpuS{0};         //!< processor time of the run without set-up

    /// Print it as one line of JSON.
    void Print() const
    {
        std::printf("{\"packets\": %llu, \"bytes\": %llu, \"packet_hops\": %llu, \"events\": %llu, "
                    "\"simulated_ps\": %lld, \"cpu_s\": %.6f}\n",
                    static_cast<unsigned long long>(packets),
                    static_cast<unsigned long long>(bytes),
                    static_cast<unsigned long long>(packetHops),
                    static_cast<unsigned long long>(events),
                    static_cast<long long>(simulatedPs),
                    cpuS);
    }
};

#endif // MOVES_H
